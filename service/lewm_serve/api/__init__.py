"""The requests and responses of the service, the same for every protocol."""
