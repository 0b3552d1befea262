/** The page: connects images that arrive with the classifier, the results, the models and the live figures. */

import { Problem, Service } from "./api.js";
import { Classifier, Item } from "./classifier.js";
import { droppedFiles } from "./files.js";
import { byId, plural } from "./format.js";
import { Live } from "./live.js";
import { Results } from "./results.js";
import { ServedModels } from "./served.js";

let isReachable = null;
let pasted = 0;

const service = new Service(showReachable);
const classifier = new Classifier(service, askForKey);
const models = new ServedModels(service, load);
const results = new Results(service, (item) => {
  classifier.add(item, models.choice);
});
const live = new Live(service, load);

/** Show whether the service responds; load everything again when it comes back. */
function showReachable(isNow) {
  if (isNow === isReachable) return;
  const isBack = isNow && isReachable === false;
  isReachable = isNow;
  byId("connection").textContent = isNow ? "Connected" : "The service cannot be reached";
  byId("connection").dataset.state = isNow ? "ok" : "offline";
  if (isBack) load();
}

/** Load what is served. If the API key is missing or wrong, ask for it. */
async function load() {
  try {
    await Promise.all([showLinks(), models.load()]);
    if (!models.info) return; // a later load has begun
    classifier.setLimit(models.info.limits.max_upload_bytes);
    byId("again").hidden = !models.hasChoice;
    byId("key-form").hidden = true;
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    models.showError(problem);
    if (problem.isAboutKey) askForKey(problem);
  }
  byId("forget-key").hidden = !service.key;
  document.querySelector("#links a[href=metrics]").hidden = Boolean(service.key); // a link sends no key
}

function askForKey(problem) {
  const isRejected = service.key !== "";
  byId("key-message").textContent = isRejected
    ? `The service does not accept this API key: ${problem.detail}.`
    : "This service needs an API key.";
  byId("key-form").hidden = false;
  byId("key").focus();
}

byId("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  if (!/^[!-~]+$/.test(key)) {
    byId("key-message").textContent = "An API key has visible ASCII characters only.";
    return;
  }
  byId("key").value = "";
  service.setKey(key);
  await load();
  if (byId("key-form").hidden) {
    byId("choose").focus();
    results.retryFailed((failure) => failure.isAboutKey);
  }
  live.start();
});

byId("forget-key").addEventListener("click", () => {
  service.setKey("");
  load();
  live.start();
});

/** Classify files that the user has chosen; with `toName`, those of the clipboard get a name. */
function addFiles(files, toName = (file) => file.name) {
  const surplus = results.add(files.map((file) => new Item(file, toName(file))));
  byId("drop-message").textContent = surplus
    ? `${plural(surplus, "image")} left out: the page keeps 1,000. Clear the results first.`
    : "";
  if (!byId("key-form").hidden) byId("key").focus();
}

for (const id of ["choose", "camera"]) {
  byId(id).addEventListener("change", (event) => {
    addFiles([...event.target.files]);
    event.target.value = ""; // the same file can be chosen again
  });
}

byId("samples").addEventListener("click", async (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  try {
    const response = await service.fetch(`page/samples/${button.dataset.name}`);
    addFiles([new File([await response.blob()], button.dataset.name, { type: "image/jpeg" })]);
  } catch (problem) {
    byId("drop-message").textContent = problem.message;
  }
});

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (files.length === 0) return;
  event.preventDefault();
  addFiles(files, (file) => {
    pasted += 1;
    return file.name === "image.png" ? `pasted-${pasted}.png` : file.name;
  });
});

let dragDepth = 0; // dragenter and dragleave come for each element that the pointer crosses
const hasFiles = (event) => event.dataTransfer.types.includes("Files");
const showDrag = (change) => {
  dragDepth = change === 0 ? 0 : dragDepth + change;
  document.body.classList.toggle("dragging", dragDepth > 0);
};
document.addEventListener("dragenter", (event) => hasFiles(event) && showDrag(1));
document.addEventListener("dragleave", (event) => hasFiles(event) && showDrag(-1));
document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
document.addEventListener("drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  showDrag(0);
  try {
    addFiles(await droppedFiles(event.dataTransfer));
  } catch (error) {
    byId("drop-message").textContent = `Cannot read the files: ${error.message}`;
  }
});

/** Show what only some services have: the API page, and explanations. */
async function showLinks() {
  const { links } = await service.json("./", { headers: { Accept: "application/json" } });
  document.querySelector("#links a[href=docs]").hidden = !links.docs;
  document.body.classList.toggle("can-explain", Boolean(links.explain));
}

await load();
live.start();
