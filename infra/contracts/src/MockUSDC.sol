// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// Development money with USDC's six decimals. Anyone may mint. Its vices can be switched on, for tests: an account on the
/// blacklist, a pause, a fee on transfers, a `false` instead of a revert, a call back into the sender of a payment.
contract MockUSDC is ERC20 {
    mapping(address account => bool) public blacklisted;
    bool public paused;
    bool public answersFalse;
    uint256 public fee;
    address public hook;
    bytes public hookCall;

    error Paused();
    error Blacklisted();

    constructor() ERC20("Mock USD Coin", "USDC") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }

    function setBlacklisted(address account, bool on) external {
        blacklisted[account] = on;
    }

    function setPaused(bool on) external {
        paused = on;
    }

    function setAnswersFalse(bool on) external {
        answersFalse = on;
    }

    function setFee(uint256 units) external {
        fee = units;
    }

    function setHook(address target, bytes calldata call) external {
        hook = target;
        hookCall = call;
    }

    function transfer(address to, uint256 amount) public override returns (bool) {
        if (answersFalse) return false;
        return super.transfer(to, amount);
    }

    function transferFrom(address from, address to, uint256 amount) public override returns (bool) {
        if (answersFalse) return false;
        return super.transferFrom(from, to, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        if (from == address(0)) return super._update(from, to, amount);
        if (paused) revert Paused();
        if (blacklisted[from] || blacklisted[to]) revert Blacklisted();
        super._update(from, to, amount - fee);
        if (fee > 0) super._update(from, address(0xfee), fee);
        if (hook != address(0)) {
            (bool ok, bytes memory answer) = hook.call(hookCall);
            if (!ok) {
                assembly {
                    revert(add(answer, 32), mload(answer))
                }
            }
        }
    }
}
