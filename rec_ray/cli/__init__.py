"""The command line `rec-ray`."""
