"""The aggregator: one process per running experiment, which runs its rounds.

`process` assembles it. `driver` obeys the round machine of `federation.rounds`; `service` serves the sites through
`sessions`, `uploads` and `broadcast`; `checkpoints` makes and keeps models; `ledger` is the journal; `supervision` is
the session with the director. It never runs experiment code: plan and model are data.
"""
