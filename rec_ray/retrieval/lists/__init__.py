"""From scores to the list of a user: filters, rules, re-ranking, popularity."""
