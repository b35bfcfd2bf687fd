"""How the updates of the sites become one: pure rules over tiles. Start with `rule`.

A rule sees a `TileSource`, never files or arrays of a whole model, so memory does not grow with model or sites; it may
walk the tiles as often as it needs. `federation.storage.combination` feeds it and writes what it yields.
"""
