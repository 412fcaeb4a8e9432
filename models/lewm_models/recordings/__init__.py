"""Recordings of robots, in the formats that people have, behind one interface."""
