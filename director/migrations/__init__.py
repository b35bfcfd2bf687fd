"""Alembic migrations of the director's database; `director migrate` and every start run them."""
