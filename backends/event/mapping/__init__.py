"""Where layers of an event graph lie on neuromorphic devices, what does not fit, and modelled energy."""
