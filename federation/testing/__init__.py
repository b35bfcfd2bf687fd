"""Fakes that ship with the library, for users' tests as much as for ours."""
