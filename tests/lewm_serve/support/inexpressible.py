"""What some protocols cannot say."""


class Inexpressible(Exception):
    """The protocol of a driver has no form for a request."""
