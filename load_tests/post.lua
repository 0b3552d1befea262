-- Script for wrk: post one image repeatedly. Its path and "multipart" or "raw" follow "--".
-- The last line is JSON: responses with 2xx per second, latencies in ms, and counts of errors.

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local image = file:read("*a")
  file:close()
  wrk.method = "POST"
  if arguments[2] == "raw" then
    wrk.headers["Content-Type"] = "image/jpeg"
    wrk.body = image
    return
  end
  local boundary = "imagefollows"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. boundary
  wrk.body = table.concat({
    "--" .. boundary,
    'Content-Disposition: form-data; name="file"; filename="image.jpg"',
    "Content-Type: image/jpeg",
    "",
    image,
    "--" .. boundary .. "--",
    "",
  }, "\r\n")
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"rate": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "rejected": %d, "failed": %d}\n',
    (summary.requests - errors.status) / summary.duration * 1e6,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
