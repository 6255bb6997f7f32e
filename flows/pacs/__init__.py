"""The archive by hand, from Python: find, retrieve to a folder, store. `flows.pacs_service` stands on it."""
