"""Creates projects for `rec-ray init`: around a sample shop, the user's own tables, or an existing Feast repository.

`init_project` and `init_from_feast` are the entry points. `shop` generates data; `own_files`, `roles` and `own_tables`
read the user's own tables and `tables` writes them; `declarations` declares features, `row_dates` dates rows, and
`feature_repo` writes and applies the Feast repository. The `feast_*` modules read an existing repository. A run uses
nothing of this package.
"""
