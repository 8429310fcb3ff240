"""How an update is carried out. Only here is TensorFlow imported, and only on that backend."""
