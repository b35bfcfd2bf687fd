"""The researcher's side: the Python client and the `federation` command.

`Federation` (in `federation.client.federation`) connects, submits, watches and downloads; every command is a thin
shell over
it. What runs at home and only at home — importing the experiment, building its initial model, packing and signing — is
`federation.client.submission`.
"""
