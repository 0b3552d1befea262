/** Figures from two scrapes of /metrics: rates, quantiles and means of the time between them. */

const SAMPLE = /^(\w+)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const INFERENCE_ROUTE = /^\/(predict|predict\/batch|embed)$|^\/v2\/.*\/infer$/;

/**
 * Read what the page shows: the histogram of requests that classify images (cumulative counts by upper bound in
 * seconds), the sum and the number of batches, and the lines that describe the models.
 */
export function readMetrics(text) {
  const scrape = { buckets: new Map(), requests: 0, batches: 0, batchImages: 0, models: "" };
  for (const line of text.split("\n")) {
    if (!line.startsWith("inference_")) continue;
    const [, name, labelText = "", value] = SAMPLE.exec(line) ?? [];
    if (name === "inference_batch_size_sum") scrape.batchImages += Number(value);
    else if (name === "inference_batch_size_count") scrape.batches += Number(value);
    else if (name === "inference_model_info") scrape.models += line;
    else if (name?.startsWith("inference_request_seconds_")) {
      const labels = Object.fromEntries([...labelText.matchAll(LABEL)].map(([, key, text]) => [key, text]));
      if (labels.method !== "POST" || !INFERENCE_ROUTE.test(labels.route)) continue;
      if (name.endsWith("_count")) scrape.requests += Number(value);
      else if (name.endsWith("_bucket")) {
        const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
        scrape.buckets.set(bound, (scrape.buckets.get(bound) ?? 0) + Number(value));
      }
    }
  }
  return scrape;
}

/** Return requests per second, p50 and p95 in ms, and images per batch; null where nothing happened. */
export function compare(earlier, later, seconds) {
  const requests = later.requests - earlier.requests;
  const batches = later.batches - earlier.batches;
  const bounds = [...later.buckets.keys()].sort((a, b) => a - b);
  const counts = bounds.map((bound) => later.buckets.get(bound) - (earlier.buckets.get(bound) ?? 0));
  return {
    rate: requests / seconds,
    p50Ms: quantile(bounds, counts, 0.5),
    p95Ms: quantile(bounds, counts, 0.95),
    batchSize: batches > 0 ? (later.batchImages - earlier.batchImages) / batches : null,
  };
}

/** Whether the counters have started again: the service did. */
export const hasRestarted = (earlier, later) =>
  later.requests < earlier.requests || later.batches < earlier.batches;

/** Estimate a quantile as Prometheus does: linear within a bucket, at most the last finite bound. */
function quantile(bounds, counts, fraction) {
  const total = counts.at(-1) ?? 0;
  if (!(total > 0)) return null;
  const rank = fraction * total;
  const index = counts.findIndex((value) => value >= rank);
  const lower = index > 0 ? bounds[index - 1] : 0;
  if (bounds[index] === Infinity) return lower * 1e3;
  const below = index > 0 ? counts[index - 1] : 0;
  return (lower + ((bounds[index] - lower) * (rank - below)) / (counts[index] - below)) * 1e3;
}
