"""The hls4ml road: the integers of a network as an hls4ml project, emulated here with g++."""
