"""The object store, stored models, atomic writes, cached vectors."""
