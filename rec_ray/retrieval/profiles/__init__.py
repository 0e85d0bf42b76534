"""Statistics of the data of one night, small enough to keep beside a version, and their comparison with another night.

`data_profile` collects them from blocks, `compare` judges two of them. The folder uses numpy and Arrow only.
"""
