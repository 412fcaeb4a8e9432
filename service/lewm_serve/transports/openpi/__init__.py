"""openpi's protocol: observations in, actions out, each as msgpack on a WebSocket."""
