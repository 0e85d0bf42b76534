"""Report of a version as one HTML file: stored facts, and the page and plots rendered from them."""
