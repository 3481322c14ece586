// Package fault has named points in the code at which a test may stop the
// world: kill the process, or run a hook.
//
// A library calls
//
//	fault.Point("tree.create.after-intent")
//
// at a step between intent, operation, record, cursor and acknowledgement.
// While nothing is armed, which is always so outside tests, a point costs one
// atomic load.
//
// A process is armed from outside with the environment variable MEZZO_FAULT,
// which the command reads at its start: NAME kills the process with SIGKILL
// the first time NAME is passed, NAME:N the Nth time. Several are separated by
// commas. In a test of the same process, Hook does it instead.
//
// A step that may fail asks Err, and a test has it fail with Fail.
//
// Names are package.operation.step, lower case.
package fault
