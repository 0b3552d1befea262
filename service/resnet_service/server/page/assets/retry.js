/** Send a request again where the service asks for it: 429 and 503 with Retry-After. */

import { Problem } from "./api.js";

const MAX_ATTEMPTS = 5;
const MAX_WAIT_S = 60;

/**
 * Return what `send` returns. If the service is busy, or the rate of the API key is exceeded, wait as long as it
 * asks and call `send` again; `onPause` gets the Problem before, and `onResume` is called afterwards. Raises the
 * last Problem, and the reason of `signal` if that is aborted.
 */
export async function withRetries(send, { signal, onPause = () => {}, onResume = () => {} } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await send();
    } catch (error) {
      const isBusy = error instanceof Problem && (error.status === 429 || error.status === 503);
      const seconds = error.retryAfterS ?? Infinity;
      if (!isBusy || seconds > MAX_WAIT_S || attempt === MAX_ATTEMPTS) throw error;
      onPause(error);
      await pause(seconds, signal);
      onResume();
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
