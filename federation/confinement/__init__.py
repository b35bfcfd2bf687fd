"""Experiment code runs in a child that has no key, no network and no file but what it needs.

- `interpreter`: which files a Python needs to run. - `sandbox`: the bubblewrap command around it.
- `answers`: what a trainer says, checked as a stranger's word. - `handle`: a trainer as its owner sees it.

Used by the collaborator, and by the envoy to describe shards. Knows neither torch nor grpc.
"""
