"""Several processes that train one model: who they are, and how a model's weights lie in parts among them."""
