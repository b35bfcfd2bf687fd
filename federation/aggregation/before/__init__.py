"""What may be done to the vectors before a rule sees them. Start with `pre_aggregation`.

Each is linear in the vectors, with factors that depend on their norms or distances, so the rule is given a
`federation.aggregation.mixing.MixedTiles` and no vector is ever held whole.
"""
