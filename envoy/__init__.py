"""The envoy: one per silo. It decides what may run there, runs it, and never runs experiment code itself.

Read in this order: `config` (what an owner sets), `admission` (the pure policy), `catalogue` (the shards on offer),
`participation` (what is remembered of each experiment), `spawning` (collaborators as supervised children), `attendance`
(the session with the director), `control` (the local socket), `daemon` (the assembly), `command` (the command line).
"""
