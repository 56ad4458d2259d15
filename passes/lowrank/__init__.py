"""Low rank: a layer's weights as a product of smaller ones, where that is smaller and faster."""
