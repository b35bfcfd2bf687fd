"""Calls between our processes: who may make which, over what, and what an error looks like on the other side.

- `credentials`: certificate files, checked and reloaded in place. - `channels`: how a connection is opened.
- `methods`: calling a service. - `server`: offering one. - `authority`: who a caller is and what it may call.
- `bulk`, `lines`: large payloads beside the calls. - `secured`: their TLS.
- `calls`, `handlers`: what a handler is told, and how its call is guarded. - `handshakes`: counting what never
  became a call. - `status`: our errors as gRPC status and back.

Nothing outside this package and the service modules names grpc.
"""
