"""Float32 graphs as float16 or bfloat16: `half.py` is the pass, `rules.py` says what stays in float32."""
