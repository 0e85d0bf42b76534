"""The report of a version as one HTML file: the facts, which are stored, and the page and plots made of them."""
