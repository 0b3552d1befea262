-- For wrk: post one image again and again; its path and "multipart" or "raw" follow "--".
-- The last line is JSON: requests answered with 2xx in a second, latencies in ms, and what went wrong.

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
  local mark = "imagefollows"
  wrk.headers["Content-Type"] = "multipart/form-data; boundary=" .. mark
  wrk.body = table.concat({
    "--" .. mark,
    'Content-Disposition: form-data; name="file"; filename="image.jpg"',
    "Content-Type: image/jpeg",
    "",
    image,
    "--" .. mark .. "--",
    "",
  }, "\r\n")
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"rate": %.3f, "p50_ms": %.3f, "p99_ms": %.3f, "rejected": %d, "broken": %d}\n',
    (summary.requests - errors.status) / summary.duration * 1e6,
    latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3,
    errors.status,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
