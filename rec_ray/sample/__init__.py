"""The embedded default: a shop with a known structure, and a project folder with a Feast repository around any data.

`init_project` is the one entry. `shop` generates data; `own_files`, `roles` and `own_tables` read the user's own and
`tables` writes them; `declarations` declares features, `row_dates` dates rows, and `feature_repo` writes and applies
the Feast repository. A run needs none of it: a project may bring its own repository.
"""
