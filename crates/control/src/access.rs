//! Who may use which of the control plane's interfaces.
