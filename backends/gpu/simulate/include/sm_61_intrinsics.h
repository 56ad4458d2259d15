// All of it is in sim.h.
