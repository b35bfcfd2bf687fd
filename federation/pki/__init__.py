"""Certificates and keys: making them, handing them out, taking them back. Time is an argument; no network here.

- `keys`: making and reading one.
- `authority`: the federation's certificate authority and what it issues.
- `requests`: signing requests, and the authority's side of enrolment and renewal.
- `renewal`: the holder's side of it, in time.
- `tokens`: join tokens.
- `signing`: signing keys, which owe nothing to the authority.
- `certificates`: reading one.
- `known`: keys pinned at a silo.
- `revocation`: certificates that no longer count.
- `files`: how all are written.
"""
