"""Spatial devices: quantized graphs as integer circuits (RTL) and as HLS projects (hls4ml)."""
