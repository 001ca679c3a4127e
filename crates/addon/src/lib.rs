//! The napi bindings: handles, promises and callbacks, no logic.
