"""The HTTP interface: requests and answers in JSON."""
