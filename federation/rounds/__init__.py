"""Rounds without I/O: what happens when, decided from events alone.

Start with `federation.rounds.machine`: events go in, actions come out. `sampling` draws the sites of a round,
`admission` judges an update's claims, `history` is what is remembered of a round, `randomness` names every random
stream. `federation.aggregator` obeys.
"""
