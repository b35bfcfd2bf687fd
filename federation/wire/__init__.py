"""Messages in and out of the domain, refusing what is malformed. The only package that knows both sides.

`schemas`, `payloads`, `updates` and `reports` convert; `chunks` cuts payloads into pieces and puts them together;
`reception` checks an upload in one pass; `versions` agrees on a protocol. Nothing here dials or waits.
"""
