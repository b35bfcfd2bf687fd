"""Runs migrations on the connection `director.store.database` hands over; there is no other way to run them."""

from __future__ import annotations

from alembic import context

from director.store.tables import Table

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Table.metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
