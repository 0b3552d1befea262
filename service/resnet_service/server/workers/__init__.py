"""HTTP workers: processes that accept, parse and decode requests, in front of one with the devices.

    worker 1..N    HTTP, decoding; writes each crop into a slot of shared memory
                       |   frames over a Unix socket, several per read
    main process   reservation -> micro-batcher -> device; writes each result into the crop's slot

`supervisor` runs in the main process: it starts the workers and replaces those that end; `worker_connection`
serves one of them. `process` is the program of a worker, and `remote_backend` what its routes use.
`shared_memory` and `frames` are used on both sides.
"""
