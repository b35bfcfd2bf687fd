"""What the director remembers: tables, migrations' database, and one module of functions per subject.

Every function takes a `Session` first and is run by `Database.transact`; each decides by compare-and-set, so that two
askers never both win.
"""
