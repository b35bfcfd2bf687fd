"""What every process of ours needs from its machine: time, tasks, signals, children, settings.

Importable on every platform; what only Linux has (pidfd, resource limits, /proc) is looked for when it is used.

- `clock`: time as an argument. - `tasks`: named, supervised asyncio tasks. - `shutdown`: two-stage stop.
- `children`: child processes that outlive, or follow, their parent. - `records`: identity and exit records.
- `orphans`: how long a child goes on alone. - `framing`: protobuf messages over a socket.
- `settings`: TOML and environment. - `resources`: resident memory.
"""
