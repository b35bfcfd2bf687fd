"""The confined child: loads bundle and shards, runs the task, hands over updates. It has no key and one socket.

``python -m federation.trainer --socket-fd N`` is started by a collaborator (or, to describe shards, an envoy) through
`federation.confinement`. It imports torch only if the experiment does.
"""
