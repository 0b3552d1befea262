/** What is served: models and versions, classes with a search, device, runtime and limits. */

import { query } from "./api.js";
import { byId, bytes, count, element, plural } from "./format.js";
import { withRetries } from "./retry.js";

const MAX_LABELS_SHOWN = 200;

export class ServedModels {
  #service;
  #choices = [];
  #labels = [];
  #number = 0; // of the latest load: an earlier one that ends later must not overwrite it

  /** `onChange` is called when another model is chosen, which then has to be loaded. */
  constructor(service, onChange) {
    this.#service = service;
    byId("search").addEventListener("input", () => this.#drawLabels());
    byId("model-select").addEventListener("change", onChange);
  }

  /** The model and the version that are chosen; both are absent for the service's default. */
  get choice() {
    return this.#choices[byId("model-select").selectedIndex] ?? {};
  }

  get hasChoice() {
    return this.#choices.length > 1;
  }

  /** Load what is served, and show the model that is chosen. Raises Problem. */
  async load() {
    this.#number += 1;
    const number = this.#number;
    const info = await this.#get("info");
    if (number !== this.#number) return;
    this.info = info;
    this.#drawChoices(info);
    const labels = await this.#get(`labels${query(this.choice)}`);
    const [name, version] = [labels.model, labels.version].map(encodeURIComponent);
    const config = await this.#get(`v2/models/${name}/versions/${version}/config`);
    if (number !== this.#number) return;
    this.#labels = labels.labels;
    this.#drawFacts(labels, config);
    this.#drawLabels();
    byId("model-message").hidden = true;
    byId("model").hidden = false;
    byId("classes").hidden = false;
  }

  #get(path) {
    return withRetries(() => this.#service.json(path));
  }

  showError(problem) {
    byId("model-message").textContent = problem.message;
    byId("model-message").hidden = false;
    byId("model").hidden = true;
    byId("classes").hidden = true;
  }

  #drawChoices(info) {
    const before = JSON.stringify(this.choice);
    const ready = info.models.filter(({ state }) => state === "READY");
    const names = [...new Set(ready.map(({ name }) => name))];
    // The default first: its requests name no model, and a version is named only if there are several.
    names.sort((a, b) => (b === info.model) - (a === info.model));
    const choices = names.flatMap((name) => {
      const versions = ready.filter((model) => model.name === name).map(({ version }) => version);
      const model = name === info.model ? {} : { model: name };
      if (versions.length === 1) return [{ text: name, ...model }];
      return [
        { text: `${name}, default version`, ...model },
        ...versions.map((version) => ({ text: `${name}, version ${version}`, model: name, version })),
      ];
    });
    this.#choices = choices.map(({ text, ...choice }) => choice);
    const select = byId("model-select");
    select.replaceChildren(...choices.map(({ text }) => element("option", "", text)));
    select.selectedIndex = Math.max(0, this.#choices.findIndex((choice) => JSON.stringify(choice) === before));
    byId("model-choice").hidden = choices.length < 2;
  }

  #drawFacts({ model, version, labels }, { backend, input, parameters }) {
    const { limits, version: serviceVersion } = this.info;
    const size = input.find(({ name }) => name === "pixels").dims[0];
    const facts = [
      ["Name", model],
      ["Version", version],
      ["Classes", count(labels.length)],
      ["Input", `${size} × ${size} px`],
      ["Device", parameters.device.string_value],
      ["Runtime", `${backend}, ${parameters.precision.string_value}`],
      ["Limits", `${bytes(limits.max_upload_bytes)}, ${count(limits.max_pixels / 1e6)} megapixels`],
      ["Formats", limits.formats.join(", ")],
    ];
    byId("facts").replaceChildren(
      ...facts.map(([name, value]) => {
        const row = element("div");
        row.append(element("dt", "", name), element("dd", "", value));
        return row;
      }),
    );
    byId("service-version").textContent = `resnet-service ${serviceVersion}`;
  }

  #drawLabels() {
    const text = byId("search").value.trim().toLowerCase();
    const matches = this.#labels
      .map((label, index) => ({ label, index }))
      .filter(({ label, index }) => label.toLowerCase().includes(text) || String(index) === text);
    byId("labels").replaceChildren(
      ...matches.slice(0, MAX_LABELS_SHOWN).map(({ label, index }) => {
        const row = element("li");
        row.append(element("span", "index", String(index)), element("span", "", label));
        return row;
      }),
    );
    const first = matches.length > MAX_LABELS_SHOWN ? `, the first ${MAX_LABELS_SHOWN} are shown` : "";
    byId("label-count").textContent = text
      ? `${plural(matches.length, "label")} of ${count(this.#labels.length)}${first}`
      : `${count(this.#labels.length)} labels${first}`;
    byId("labels").hidden = matches.length === 0;
  }
}
