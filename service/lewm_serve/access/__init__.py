"""Who may come in: named keys with roles and limits, and the file that holds their hashes."""
