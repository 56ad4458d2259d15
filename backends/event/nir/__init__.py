"""NIR, the exchange format of spiking networks: read, written, stepped; lava's `.net` is read too."""
