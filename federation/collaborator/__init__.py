"""The collaborator: one process per experiment and site. It fetches, hands to the trainer, checks, and sends.

It runs no experiment code and imports no torch; the model passes through it in pieces and lies only in files. Read in
this
order: `config` (what the envoy fixes), `ordering` (the pure rules of a session), `exchange` (the files shared with the
trainer), `downloads`, `protection` (the checks on what a trainer hands over), `uploads`, `work` (one task), `session`
(the stream to the aggregator), `parent` (the line to the envoy), `process` (the assembly).
"""
