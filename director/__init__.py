"""The director: one per federation, at the coordinating party; it decides what runs and never runs experiment code.

Read in this order: `lifecycle` and `scheduling` (pure rules), `store` (what is remembered), `intake`, `attendance`,
`supervision` and `overseer` (the shells that obey the rules), `service` (the wire), `daemon` (assembly).
"""
