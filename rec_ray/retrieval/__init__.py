"""The science: arrays and tensors in and out. It runs wherever numpy, pyarrow and torch do; no Ray, no Feast."""
